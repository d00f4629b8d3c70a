"""What a file from outside may cost. The limits of all readers are set here, and `make fuzz` holds the readers to them.

Whatever a file claims, reading it takes at most `MEMORY` bytes and `SECONDS` of one core, and beyond them what `COSTS`
states for each byte of the file (`IMAGE_SECONDS` for each image of an archive). Sizes are in bytes unless they say
otherwise. Imports nothing.
"""

MEMORY, SECONDS, IMAGE_SECONDS = 1 << 30, 10.0, 10.0
# Of each reader: bytes of memory for each byte of the file, seconds for each million bytes.
COSTS = {
    "archive": (32, 2.0),  # names of members that are 64 bytes in the file; what grows a hundredfold in unpacking
    "image": (4, 0.1),
    "recipe": (0, 0.0),
    "table": (40, 2.0),  # short rows: `a1,b`
    "checkpoint": (4, 0.1),
    "onnx": (40, 2.0),
    "index": (32, 1.0),
    "result": (32, 1.0),  # JSON: `[[],[],…`
}

# Text
LARGEST_RECIPE = 64 << 10  # the recipes of the package have about 2,000; tomllib's time grows with the square of a key
MOST_KEY_PARTS = 16  # parts of a key of a recipe: `a.b.c` has three
DEEPEST_VALUE = 32  # levels of lists and tables in a recipe
LARGEST_MARK = 1 << 20  # small files beside others: markers, checksums, settings
LARGEST_DOCUMENT = 256 << 20  # JSON: a result has about 200 bytes for a class and 35 for a test image
LARGEST_ROW = 1 << 20  # characters of a line in a log; longer ones are skipped
LARGEST_INDEX = 4 << 30  # the table of an index, one row for each image
LARGEST_TABLE = 256 << 20  # of labels, or a list of files; seven million rows

# Archives: images hardly compress, so a hundredfold growth beyond this much is no data set.
MAX_GROWTH, GROWTH_FREE_BYTES = 100, 512 << 20
MEMBERS_FREE, BYTES_OF_MEMBER = 100_000, 64  # so many members, and one more for so many bytes of the archive
MAX_HEADER_BYTES, MOST_HEADERS = 1 << 20, 16  # of the extended headers before one member of a tar
MAX_PATH = 4096  # characters of a member's path, as in Linux
MAX_DEPTH = 256  # folders within folders

QUEUED_BYTES = 128 << 20  # of members that are read and wait to be decoded

# Images
MAX_FILE_BYTES = 256 << 20
MAX_PIXELS = 89_478_485  # Pillow's own warning threshold, a quarter of a gigabyte of RGB
# Of formats whose decoders keep several copies: 16 to 24 bytes for a pixel, where the others take 8.
PIXELS_OF_FORMAT = {"WEBP": 50_000_000, "AVIF": 50_000_000, "HEIF": 50_000_000, "JPEG2000": 40_000_000}
BYTES_OF_PIXEL = 8  # as decoded and as RGB; what a TIFF keeps of a strip or tile comes on top
JPEG_WORK = 32 * MAX_PIXELS  # pixels times scans; a progressive JPEG has 10 scans, in CMYK 18
LARGE_PIXELS = 1 << 24  # of larger images one is decoded at a time, whatever the number of threads
MIN_SIZE, MAX_SIZE = 8, 1024  # side of the squares that images become, pixels

# Weights
MOST_INSTRUCTIONS = 1 << 22  # in one pickle: seconds of work and less than 1 GB; a checkpoint has some thousands
MOST_PICKLED = 1 << 27  # one pickle in a zip archive
MOST_DIMENSIONS = 64  # of a tensor, as torch's own limit
LARGEST_HEADER = 16 << 20  # of a safetensors file; that of a ResNet-50 has 30,000
LARGEST_NPZ = 1 << 29  # all arrays of an .npz file; those of the most images that are kept have 0.1 GiB

# ONNX
LARGEST_MODEL = 2**31 - 1  # a protobuf message cannot be larger
MOST_NODES = 4_000  # operators and tensors in a file; the export of a ResNet-50 has about 250
MOST_NUMBERS = 1 << 12  # bytes of whole numbers in one field: shapes, axes, paddings
LARGEST_PROPERTY = 4 << 20  # the text of a metadata property: class names
MOST_FEATURES = 1 << 16  # width of the features
# Beside a free amount: the values that exist at once in a run, and the multiplications, for each pixel of an image. A
# ResNet-50 with a small stem has 256 channels at full size, three times at once, and 1.3 million multiplications.
LIVE_FREE, LIVE_OF_PIXEL = 1 << 26, 1 << 10
WORK_FREE, WORK_OF_PIXEL = 1 << 32, 4 << 20
WORK_OF_VALUE = 32  # a power or a logarithm takes as long as so many multiplications of a product
VALUES_FREE = 1 << 20  # computed while a file is loaded, and two for each byte of the file
