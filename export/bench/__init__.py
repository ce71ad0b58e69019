"""How fast engines are, beside other ways to run the same model."""
