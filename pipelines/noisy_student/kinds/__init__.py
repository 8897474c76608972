"""What differs between pseudo-labels of images, boxes and pixels."""
