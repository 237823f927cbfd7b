"""What a trained model is worth: action error, video error, round measures."""
