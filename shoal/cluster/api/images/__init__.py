"""Images: the files of sandboxes, which others start from."""
