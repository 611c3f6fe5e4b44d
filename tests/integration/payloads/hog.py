"""Takes memory until somebody stops it."""

taken = []
while True:
    taken.append(bytearray(10_000_000))
