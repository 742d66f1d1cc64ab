"""Operations that the models are made of: scans, products, dropout, packing, kernels."""
