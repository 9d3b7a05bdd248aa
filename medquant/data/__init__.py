"""Scans and masks: readers, datasets, splits, normalisation, augmentation and training patches. Knows nothing of quantization."""
