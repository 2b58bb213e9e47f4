"""How many features should fire on a token?"""
