"""Prepare ISIC, from the archive to images, sticker masks and splits: one module for each step."""
