"""Draws icon.png and banner.png: the canvas' links become threads, and the threads a cloth. Run: python assets/draw.py

Needs Pillow only. The banner's letters take the first font of FONTS that the machine has.
"""
from __future__ import annotations

import colorsys
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

HERE = Path(__file__).parent
NIGHT, DUSK = (17, 16, 38), (38, 28, 74)
WARP = [(255, 111, 97), (255, 145, 86), (255, 181, 84), (247, 120, 130), (226, 96, 148), (190, 92, 190)]
WEFT = [(72, 202, 190), (64, 172, 222), (104, 138, 240), (140, 116, 240), (58, 190, 208), (88, 214, 160)]
GOLD = (255, 222, 120)
FONTS = ["NotoSans-Bold.ttf", "DejaVuSans-Bold.ttf", "Arial Bold.ttf", "arialbd.ttf", "LiberationSans-Bold.ttf"]
LIGHT_FONTS = ["NotoSans-Regular.ttf", "DejaVuSans.ttf", "Arial.ttf", "arial.ttf", "LiberationSans-Regular.ttf"]
SCALE = 3  # drawn so much larger, then shrunk: Pillow's lines have hard edges


def font(names: list[str], size: int) -> ImageFont.FreeTypeFont:
    for name in names:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def shade(colour: tuple[int, int, int], factor: float) -> tuple[int, int, int]:
    """Lighter above 1, darker below."""
    h, lightness, s = colorsys.rgb_to_hls(*(c / 255 for c in colour))
    return tuple(round(255 * c) for c in colorsys.hls_to_rgb(h, min(1, lightness * factor), s))


def backdrop(width: int, height: int) -> Image.Image:
    """Night to dusk, from the upper left to the lower right."""
    ramp = Image.linear_gradient("L").rotate(90)
    mixed = Image.blend(ramp, Image.linear_gradient("L"), 0.5).resize((width, height))
    return Image.composite(Image.new("RGB", (width, height), DUSK), Image.new("RGB", (width, height), NIGHT), mixed)


def thread(length: int, thickness: int, colour: tuple[int, int, int]) -> Image.Image:
    """A lying ribbon (RGBA): light along its middle, dark at its edges, with fine strands."""
    profile = Image.new("RGB", (1, thickness))
    for y in range(thickness):
        across = abs(2 * (y + 0.5) / thickness - 1)
        strand = 0.035 if y * 7 // thickness % 2 else 0
        profile.putpixel((0, y), shade(colour, 1.1 - 0.42 * across**2.4 - strand))
    ribbon = profile.resize((length, thickness)).convert("RGBA")
    ribbon.putalpha(ImageChops.invert(Image.new("L", (length, thickness), 0)))
    return ribbon


def crossing(cloth: Image.Image, over: Image.Image, x: int, y: int, bare: int = -1) -> None:
    """Lay a piece over the cloth with a soft shadow under it; with `bare`, at its sides only and not on so much of its ends."""
    reach = max(4, min(over.size) // 7)
    dark = Image.new("L", (over.width + 4 * reach, over.height + 4 * reach), 0)
    dark.paste(150, (2 * reach, 2 * reach, 2 * reach + over.width, 2 * reach + over.height))
    dark = dark.filter(ImageFilter.GaussianBlur(reach))
    shadow = Image.new("RGBA", dark.size, (8, 6, 24, 255))
    if bare >= 0:
        dark.paste(0, (0, 0, dark.width, 2 * reach + bare))
        dark.paste(0, (0, 2 * reach + over.height - bare, dark.width, dark.height))
    shadow.putalpha(dark)
    cloth.alpha_composite(shadow, (max(0, x - 2 * reach), max(0, y - 2 * reach)), (max(0, 2 * reach - x), max(0, 2 * reach - y)))
    cloth.alpha_composite(over, (x, y))


def weave(columns: int, rows: int, pitch: int, gap: int, gold_row: int | None = None, ends: int = 0) -> Image.Image:
    """Plain weave (RGBA): warp upright, weft across, over and under by turns; `ends` is how far the threads stick out."""
    width = pitch - gap
    size = (columns * pitch + 2 * ends, rows * pitch + 2 * ends)
    cloth = Image.new("RGBA", size)
    warp = [thread(size[1], width, WARP[c * len(WARP) // columns % len(WARP)]).rotate(90, expand=True) for c in range(columns)]
    weft = [thread(size[0], width, GOLD if r == gold_row else WEFT[r * len(WEFT) // rows % len(WEFT)]) for r in range(rows)]
    place = lambda n: ends + n * pitch + gap // 2
    for c, ribbon in enumerate(warp):
        cloth.alpha_composite(ribbon, (place(c), 0))
    for r, ribbon in enumerate(weft):
        crossing(cloth, ribbon, 0, place(r))
    for c in range(columns):
        for r in range(rows):
            if (c + r) % 2:
                crossing(cloth, warp[c].crop((0, place(r) - gap, width, place(r) + width + gap)), place(c), place(r) - gap, bare=gap)
    return cloth


def rounded(size: tuple[int, int], radius: int) -> Image.Image:
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, size[0] - 1, size[1] - 1), radius, fill=255)
    return mask


def icon(size: int = 400) -> Image.Image:
    big = size * SCALE
    picture = backdrop(big, big).convert("RGBA")
    pitch = big * 15 // 100
    cloth = weave(4, 4, pitch, pitch // 5, gold_row=1, ends=pitch // 2)
    cloth.putalpha(ImageChops.multiply(cloth.getchannel("A"), rounded(cloth.size, pitch // 5)))
    cloth = cloth.rotate(45, expand=True, resample=Image.Resampling.BICUBIC)
    glow = Image.new("RGBA", picture.size, (130, 90, 255, 0))
    light = Image.new("L", picture.size, 0)
    ImageDraw.Draw(light).ellipse((big * 0.18, big * 0.18, big * 0.82, big * 0.82), fill=110)
    glow.putalpha(light.filter(ImageFilter.GaussianBlur(big // 9)))
    picture.alpha_composite(glow)
    at = ((big - cloth.width) // 2, (big - cloth.height) // 2)
    picture.alpha_composite(cloth, (max(0, at[0]), max(0, at[1])), (max(0, -at[0]), max(0, -at[1])))
    picture.putalpha(rounded(picture.size, big * 22 // 100))
    return picture.resize((size, size), Image.Resampling.LANCZOS)


def link(draw: ImageDraw.ImageDraw, start: tuple[float, float], end: tuple[float, float], colour: tuple[int, int, int], width: int) -> None:
    """A canvas link, a cubic curve that leaves and arrives level, growing from a link's width to a thread's."""
    reach, points = end[0] - start[0], []
    for step in range(1001):
        t = step / 1000
        weights = ((1 - t)**3, 3 * t * (1 - t)**2, 3 * t * t * (1 - t), t**3)
        xs, ys = (start[0], start[0] + 0.8 * reach, end[0] - 0.35 * reach, end[0]), (start[1], start[1], end[1], end[1])
        points.append((sum(map(float.__mul__, weights, xs)), sum(map(float.__mul__, weights, ys)), width * (0.2 + 0.8 * t * t * (3 - 2 * t)) / 2))
    for factor, part in ((0.66, 1.0), (0.8, 0.88), (0.93, 0.7), (1.02, 0.48), (1.1, 0.22)):
        for x, y, half in points:
            draw.ellipse((x - half * part, y - half * part, x + half * part, y + half * part), fill=shade(colour, factor))


def banner(width: int = 1260, height: int = 540) -> Image.Image:
    w, h = width * SCALE, height * SCALE
    picture = backdrop(w, h).convert("RGBA")
    pitch, rows, columns = h // 9, 6, 6
    gap = pitch // 5
    cloth_x, cloth_y = round(w * 0.685), (h - rows * pitch) // 2
    draw = ImageDraw.Draw(picture)

    gold = 3
    outlets = [h * 0.70, h * 0.735, h * 0.77, h * 0.83, h * 0.865, h * 0.90]  # of two little nodes at the lower left
    colours = [GOLD if row == gold else WEFT[row * len(WEFT) // rows % len(WEFT)] for row in range(rows)]
    for row in sorted(range(rows), key=lambda r: r == gold):
        link(draw, (w * 0.245, outlets[row]), (float(cloth_x + gap), cloth_y + (row + 0.5) * pitch), colours[row], pitch - gap)
    for top, bottom, title in ((0.655, 0.795, WARP[1]), (0.815, 0.925, WARP[4])):
        box = (w * 0.065, h * top, w * 0.245, h * bottom)
        draw.rounded_rectangle(box, h // 45, fill=(44, 40, 66), outline=(88, 80, 128), width=SCALE * 2)
        draw.rounded_rectangle((box[0], box[1], box[2], box[1] + h // 26), h // 45, fill=shade(title, 0.62), corners=(True, True, False, False))
        for line in range(2 if top < 0.7 else 1):
            y = box[1] + h * (0.062 + 0.034 * line)
            draw.rounded_rectangle((box[0] + w * 0.016, y, box[0] + w * 0.115, y + h // 60), h // 120, fill=(78, 72, 110))
    for row, y in enumerate(outlets):
        draw.ellipse((w * 0.245 - h / 75, y - h / 75, w * 0.245 + h / 75, y + h / 75), fill=colours[row], outline=NIGHT, width=SCALE * 2)

    ends = pitch * 3
    cloth = weave(columns, rows, pitch, gap, gold_row=gold, ends=ends)
    alpha = cloth.getchannel("A")
    alpha.paste(0, (0, 0, ends, cloth.height))  # on the left the links arrive; the weft runs out of the picture on the right
    cloth.putalpha(alpha)
    room = (ends, max(0, ends - cloth_y), min(cloth.width, ends + w - cloth_x), min(cloth.height, ends + h - cloth_y))
    picture.alpha_composite(cloth.crop(room), (cloth_x, max(0, cloth_y - ends)))

    draw = ImageDraw.Draw(picture)
    draw.text((w * 0.062, h * 0.12), "LoRA Loom", font=font(FONTS, h * 17 // 100), fill=(250, 246, 255))
    small = font(LIGHT_FONTS, h * 52 // 1000)
    draw.text((w * 0.065, h * 0.355), "Train LoRAs on the ComfyUI canvas,", font=small, fill=(206, 198, 232))
    draw.text((w * 0.065, h * 0.43), "generate with them in the same graph.", font=small, fill=GOLD)
    return picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    icon().save(HERE / "icon.png", optimize=True)
    banner().save(HERE / "banner.png", optimize=True)
