"""The pieces that replace a plain formula: faster on some device, equal but for rounding, and chosen by device.

Each module's docstring says what it replaces. `exchange` puts those that are modules into a model. docs/speed.md says
what was measured, and how.
"""
