"""From the ISIC archive to images, patch masks and splits: one module a step."""
