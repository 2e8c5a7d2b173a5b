"""MoSLoRA: low-rank adapters with a learnable mixer between the factors, ΔW = s · B · M · A."""
