"""What is wrong with a data set: images, annotations, classes, splits. No model is needed."""
