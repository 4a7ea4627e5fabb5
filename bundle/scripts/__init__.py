"""Medal S as a MONAI bundle: what the files in `configs/` put together."""
