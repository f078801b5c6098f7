"""Two clients that train a perceptron on digits with Flower, and a server that audits what they send."""
