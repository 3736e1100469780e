"""What Shoal is compared with."""
