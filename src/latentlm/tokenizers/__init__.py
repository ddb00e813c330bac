"""Raw media to tokens and back: text to ids, pictures to latent vectors (paper Section 2.3) or to codes.

`base.py` holds the contract of latent tokenizers; `image.py` reads like Figure 3; `bottleneck.py` is Eq. 5 and Eq. 6's
second term. `vq_image.py` is the vector-quantized baseline: the same encoder and decoder around `quantizer.py`.
"""
