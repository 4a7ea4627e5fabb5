"""Where images, label maps and demonstration data come from."""
