"""All that needs a GPU, or estimates one."""
