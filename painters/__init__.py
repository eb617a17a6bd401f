"""Painters for `process.paint`: image models that draft a picture and change it stroke by stroke.

Latents are carried from stroke to stroke, never encoded again; what lies outside a stroke's region stays bit-equal.
"""
