"""The pieces that replace a plain formula: faster on some device, equal but for rounding, and chosen by device.

==============  ================================================  ====================================================
piece           replaces                                          by
==============  ================================================  ====================================================
rows            padded batches                                    rows end to end, sharing what they begin with
attention       softmax(s Q Kᵀ) V over a padded batch             in groups of similar rows; torch's fused on a GPU
linear          x Wᵀ with a frozen W                              oneDNN with packed weights, on a CPU
norm, mlp       RMSNorm and SwiGLU                                what the backward pass can compute again is not kept
vocabulary      log-softmax over all tokens                       a piece of the vocabulary at a time
dropout         a random number for every entry                   only the places to drop, on a CPU
recompute       autograd's copies of an adapter's input           computed again from tensors that are kept anyway
==============  ================================================  ====================================================

`exchange` puts those that are modules into a model. docs/speed.md says what was measured, and how.
"""
