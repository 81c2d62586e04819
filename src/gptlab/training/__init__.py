"""One recipe, one loop: from settings to a trained model."""
