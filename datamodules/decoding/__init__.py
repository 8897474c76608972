"""From a file to pixels: images of any format and depth, frames of videos, sizes from headers."""
