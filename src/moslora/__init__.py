"""MoSLoRA: low-rank adapters with a learnable mixer between the factors, ΔW = s · B · M · A."""

__version__ = "0.1.0"
