"""Models, algorithms, data and evaluation of PFSR; knows neither Flower nor a command line."""
