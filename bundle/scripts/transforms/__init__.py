"""Array and dictionary transforms, in MONAI's manner."""
