"""Kernels that replace a plain formula: faster on some device, equal except for rounding, and chosen by device.

Each module's docstring names the formula that it replaces. `exchange` puts modules into a model. docs/speed.md has the
measurements. Adapters, the losses of methods and training are in other packages.
"""
