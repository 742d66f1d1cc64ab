"""Federations over the network: certificates, keys, Flower's commands and a diagnosis."""
