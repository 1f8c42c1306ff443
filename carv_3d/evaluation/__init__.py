"""Scores of finished images: the classifier, IoU and PSNR against the true shape, CLIP, distances of features."""
