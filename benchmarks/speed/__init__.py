"""Speed on this machine against what people use now."""
