"""``noprop demo``: a page in which a trained model answers drawings, images and examples.

``answers`` asks the model, ``markup`` writes its answers as HTML, ``page`` arranges them with
gradio, and ``server`` serves the page and nothing else.
"""
