"""Images in all the forms that are read or refused, and what Pillow and transformers make of them.

Usage: python scripts/golden/images.py      writes fixtures/media/; needs pillow==13.0.0

`resize-FILTER-WxH.png` and `processor-NAME.png` are outputs of 8 bits; `processors.json` has the keys of each processor and the
values that it gives for one pixel of each channel.
"""

import io
import json
import struct
import zlib

import numpy as np
from common import FIXTURES, SCRIPT, header
from PIL import Image
from transformers import CLIPImageProcessorPil, ViTImageProcessorPil

OUT = FIXTURES / "media"
OUT.mkdir(parents=True, exist_ok=True)
rng = np.random.default_rng(20246)
height, width = 37, 53
y, x = np.mgrid[0:height, 0:width]
smooth = np.stack([128 + 100 * np.sin(x / 7), 128 + 90 * np.cos(y / 5 + x / 11), 4 * x + y], -1)
pixels = np.clip(smooth + rng.normal(0, 25, smooth.shape), 0, 255).astype(np.uint8)
source = Image.fromarray(pixels)
source.save(OUT / "source.png")
filters = dict(nearest=0, lanczos=1, bilinear=2, bicubic=3, box=4, hamming=5)
for name, number in filters.items():
    for size in [(20, 16), (80, 90), (53, 11), (7, 37)]:
        source.resize(size, number).save(OUT / f"resize-{name}-{size[0]}x{size[1]}.png")

processors = {
    "vit": ViTImageProcessorPil(size={"height": 24, "width": 18}),
    "bicubic": ViTImageProcessorPil(size={"height": 48, "width": 60}, resample=3, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]),
    "clip": CLIPImageProcessorPil(size={"shortest_edge": 30}, crop_size={"height": 25, "width": 28}),
    "wide-crop": CLIPImageProcessorPil(size={"shortest_edge": 20}, crop_size={"height": 25, "width": 28}),
    "plain": ViTImageProcessorPil(do_resize=False, do_normalize=False),
}
made = {}
for name, processor in processors.items():
    values = processor(source, return_tensors="np")["pixel_values"][0]
    keys = {k: v for k, v in json.loads(processor.to_json_string()).items()}
    bytes_ = processor(source, return_tensors="np", do_rescale=False, do_normalize=False)["pixel_values"][0]
    Image.fromarray(bytes_.transpose(1, 2, 0).astype(np.uint8)).save(OUT / f"processor-{name}.png")
    made[name] = {"keys": keys, "first": [float(v) for v in values[:, 0, 0]], "last": [float(v) for v in values[:, -1, -1]]}
(OUT / "processors.json").write_text(json.dumps({"header": header(20246, ["keys", "first", "last"]), "processors": made}, indent=1) + "\n")


def saved(image, name, **options):
    image.save(OUT / name, **options)


saved(source, "plain.jpg", quality=95, subsampling=0)
saved(source, "progressive.jpg", quality=90, progressive=True)
saved(source.convert("L"), "grey.jpg", quality=95)
saved(source.convert("CMYK"), "cmyk.jpg", quality=90)
saved(source.convert("L"), "grey.png")
saved(source.convert("P", palette=Image.Palette.ADAPTIVE), "palette.png")
rgba = source.convert("RGBA")
rgba.putalpha(Image.fromarray((x * 4).astype(np.uint8)))
saved(rgba, "alpha.png")
saved(source, "lossless.webp", lossless=True)
saved(source, "plain.bmp")
saved(source.convert("P", palette=Image.Palette.ADAPTIVE), "still.gif")
frames = [source, Image.fromarray(255 - pixels)]
frames[0].save(OUT / "animated.gif", save_all=True, append_images=frames[1:])
frames[0].save(OUT / "animated.png", save_all=True, append_images=frames[1:])
frames[0].save(OUT / "animated.webp", save_all=True, append_images=frames[1:])
exif = Image.Exif()
exif[0x0112] = 6
saved(source, "turned.jpg", quality=95, subsampling=0, exif=exif)


def deep(name, channels, transparent=b""):
    """A PNG of 16 bits, which Pillow itself writes only in grey; its values meet all cases of rounding."""
    kinds = {1: 0, 3: 2, 2: 4, 4: 6}
    values = np.arange(height * width * channels, dtype=np.uint32) * 6151 % 65536
    rows = values.astype(">u2").reshape(height, width * channels)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    size = struct.pack(">IIBBBBB", width, height, 16, kinds[channels], 0, 0, 0)
    chunks = [(b"IHDR", size)] + [(b"tRNS", transparent)] * bool(transparent) + [(b"IDAT", data), (b"IEND", b"")]
    made = b"".join(struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks)
    (OUT / name).write_bytes(b"\x89PNG\r\n\x1a\n" + made)


deep("deep-grey.png", 1)
deep("deep-grey-clear.png", 1, b"\0\5")
deep("deep-grey-alpha.png", 2)
deep("deep-color.png", 3)
deep("deep-alpha.png", 4)
# What Pillow makes of those that are read, as RGB.
from PIL import ImageOps

for name in ["plain.jpg", "progressive.jpg", "grey.jpg", "grey.png", "palette.png", "alpha.png", "turned.jpg", "still.gif"] + [f"deep-{kind}.png" for kind in ["color", "alpha", "grey-alpha"]]:
    ImageOps.exif_transpose(Image.open(OUT / name)).convert("RGB").save(OUT / f"read-{name}.png")
