"""Reports of a run or a sweep: the HTML page, TensorBoard events and the confusion matrix."""
