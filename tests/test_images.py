"""Every kind of picture becomes (H, W, 3) uint8 RGB, pixels right; broken files are named."""

import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from dataset.sample import read_annotated_image
from utils.errors import UserError
from utils.images import as_image, image_size, list_images, load_image

HEIGHT, WIDTH = 24, 40
BROKEN = ("truncated_jpeg.jpg", "kangaroo_00090.jpg", "broken_data_stream.png")


@pytest.fixture(scope="module")
def scene():
    """A smooth coloured picture without any symmetry."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([6 * x, 10 * y, 255 - 3 * x - 5 * y], axis=2).astype(np.uint8)


@pytest.fixture
def stored(tmp_path):
    """Saves a PIL image, loads the file."""

    def store(image, name="a.png", **options):
        image.save(tmp_path / name, **options)
        return load_image(tmp_path / name)

    return store


def gray(scene):
    return np.asarray(Image.fromarray(scene).convert("L"))


def test_rgb_is_kept_exactly(scene, stored):
    for name in ("a.png", "a.bmp", "a.tiff", "a.ppm"):
        np.testing.assert_array_equal(stored(Image.fromarray(scene), name), scene)
    image = stored(Image.fromarray(scene), "a.webp", lossless=True)
    np.testing.assert_array_equal(image, scene)
    assert image.flags.writeable and image.flags.c_contiguous and image.dtype == np.uint8


def test_cmyk_jpeg_has_the_colours_of_the_picture(scene, stored):
    image = stored(Image.fromarray(scene).convert("CMYK"), "a.jpg", quality=100, subsampling=0)
    assert np.abs(image.astype(int) - scene).max() <= 12


def test_gray_palette_and_one_bit(scene, stored):
    expected = np.repeat(gray(scene)[..., None], 3, axis=2)
    np.testing.assert_array_equal(stored(Image.fromarray(gray(scene))), expected)
    palette = Image.fromarray(scene).quantize(64)
    np.testing.assert_array_equal(stored(palette), np.asarray(palette.convert("RGB")))
    bits = gray(scene) > 99
    expected = np.repeat(255 * bits[..., None], 3, axis=2)
    np.testing.assert_array_equal(stored(Image.fromarray(bits)), expected)


def test_transparent_parts_become_white(scene, stored):
    alpha = np.zeros((HEIGHT, WIDTH), np.uint8)
    alpha[:, 10:] = 255
    alpha[:, 20:] = 128
    for mode in ("RGBA", "LA"):
        picture = Image.fromarray(scene).convert(mode)
        picture.putalpha(Image.fromarray(alpha))
        opaque = np.asarray(picture.convert("RGB")).astype(int)
        image = stored(picture).astype(int)
        assert (image[:, :10] == 255).all()
        np.testing.assert_array_equal(image[:, 10:20], opaque[:, 10:20])
        half = (opaque[:, 20:] * 128 + 255 * 127) / 255
        assert np.abs(image[:, 20:] - half).max() <= 1


def test_a_transparent_colour_becomes_white(scene, stored):
    palette = Image.fromarray(scene).quantize(16)
    hidden = np.asarray(palette) == 3
    image = stored(palette, transparency=3)
    assert hidden.any() and (image[hidden] == 255).all() and (image[~hidden] != 255).any()
    values = np.tile(np.uint8([7, 90, 200, 90]), (HEIGHT, 10))
    image = stored(Image.fromarray(values), transparency=90)
    np.testing.assert_array_equal(image[..., 1], np.where(values == 90, 255, values))


def test_sixteen_bits_are_scaled_not_clipped(stored):
    values = np.linspace(0, 65535, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint16)
    for name in ("a.png", "a.tiff"):
        image = stored(Image.fromarray(values), name)
        assert np.abs(image - values[..., None] / 257).max() <= 0.5
    image = stored(Image.fromarray(values), transparency=int(values[0, 9]))
    assert (image[0, 9] == 255).all() and (image[0, 8] < 10).all()


def test_floats_and_wide_integers_are_stretched(stored):
    values = np.linspace(-3, 5, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.float32)
    for deep in (values, (values * 1e6).astype(np.int32)):
        image = stored(Image.fromarray(deep), "a.tiff")
        assert image[0, 0, 0] == 0 and image[-1, -1, 2] == 255
        assert np.abs(image[..., 1] - (values + 3) * 255 / 8).max() <= 0.6


@pytest.mark.parametrize("name", ["a.png", "a.tif", "lzw.tif", "pages.tif", "a.webp", "a.jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_picture_upright(scene, stored, tmp_path, orientation, name):
    turns = {  # what a camera held that way stores
        1: scene, 2: scene[:, ::-1], 3: scene[::-1, ::-1], 4: scene[::-1],
        5: scene.swapaxes(0, 1), 6: np.rot90(scene, 1), 7: np.rot90(scene, 2).swapaxes(0, 1),
        8: np.rot90(scene, -1),
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = np.ascontiguousarray(turns[orientation])
    options = {
        "lzw.tif": {"compression": "tiff_lzw"},
        "pages.tif": {"save_all": True, "append_images": [Image.fromarray(file)]},
        "a.webp": {"lossless": True},
        "a.jpg": {"quality": 100, "subsampling": 0},
    }.get(name, {})
    tolerance = 4 if name == "a.jpg" else 0
    upright = stored(Image.fromarray(file), name, exif=exif, **options)
    np.testing.assert_allclose(upright.astype(int), scene, atol=tolerance)
    as_stored = load_image(tmp_path / name, exif=False).astype(int)
    np.testing.assert_allclose(as_stored, file, atol=tolerance)
    for exif, shape in ((True, scene.shape), (False, file.shape)):
        assert image_size(tmp_path / name, exif=exif) == shape[:2]
        for stated in (scene.shape[:2], file.shape[:2]):  # as an annotation may have it
            assert read_annotated_image(tmp_path / name, stated, "")[1] == stated
    with Image.open(tmp_path / name) as image:
        np.testing.assert_allclose(as_image(image).astype(int), scene, atol=tolerance)


def test_as_image_takes_paths_pil_images_and_arrays(scene, tmp_path):
    Image.fromarray(scene).save(tmp_path / "a.png")
    for image in (scene, Image.fromarray(scene), tmp_path / "a.png", str(tmp_path / "a.png")):
        np.testing.assert_array_equal(as_image(image), scene)
    np.testing.assert_array_equal(as_image(scene[:, ::-1]), scene[:, ::-1])


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((3, 8, 8), np.uint8)]
)
def test_as_image_refuses_other_arrays(image):
    with pytest.raises(ValueError, match=r"RGB uint8 array \(H, W, 3\), got (float64|uint8) \("):
        as_image(image)


def test_as_image_takes_tensors(scene):
    pixels = torch.from_numpy(scene).permute(2, 0, 1)  # (3, H, W)
    for image in (pixels, pixels / 255, (pixels / 255).double(), (pixels / 255).requires_grad_()):
        taken = as_image(image)
        assert taken.dtype == np.uint8 and taken.flags.c_contiguous
        np.testing.assert_array_equal(taken, scene)
    normalised = (pixels / 255 - 0.5) / 0.25
    other = (normalised, pixels / 1.0, pixels * torch.nan, pixels.int(), pixels[:1], pixels[0])
    for image in (*other, pixels[None]):
        with pytest.raises(ValueError, match="^image must be a tensor .*, got ") as caught:
            as_image(image)
        assert "\n" not in str(caught.value)


def test_as_image_refuses_other_things():
    with pytest.raises(ValueError, match="a path, a PIL image, an RGB uint8 array .*, got list"):
        as_image([[0, 0, 0]])


def test_unreadable_files_are_named_in_one_line(scene, tmp_path):
    Image.fromarray(scene).save(tmp_path / "whole.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-200])
    (tmp_path / "text.png").write_text("<html>404</html>")
    (tmp_path / "empty.jpg").touch()
    for name in ("half.jpg", "text.png", "empty.jpg", "missing.jpg", "."):
        with pytest.raises(UserError) as caught:
            load_image(tmp_path / name)
        message = str(caught.value)
        assert str(tmp_path / name) in message and "\n" not in message and "; " in message


def test_list_images_of_a_file_a_folder_and_a_glob(scene, tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.JPG", "a.png", "sub/c.webp", "a[1].png"):
        Image.fromarray(scene).save(tmp_path / name)
    (tmp_path / "notes.txt").touch()
    (tmp_path / "._b.jpg").touch()

    def names(pattern):
        return [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path / pattern)]

    assert names(".") == ["a.png", "a[1].png", "b.JPG"]
    assert names("*") == ["a.png", "a[1].png", "b.JPG"]
    assert names("**/*") == ["a.png", "a[1].png", "b.JPG", "sub/c.webp"]
    assert names("a[1].png") == ["a[1].png"]
    assert names("a*") == ["a.png", "a[1].png"]
    (tmp_path / ".cache").mkdir()
    Image.fromarray(scene).save(tmp_path / ".cache" / "d.png")
    found = list_images(tmp_path, recursive=True)
    assert [path.relative_to(tmp_path).as_posix() for path in found] == names("**/*")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    with pytest.raises(UserError, match="no image at .*deep; its subfolders .* --recursive"):
        list_images(tmp_path / "deep")
    for nothing in ("missing.jpg", "*.gif", "sub/d*"):
        with pytest.raises(UserError, match="no image at .*; give a file, a folder or a glob"):
            list_images(tmp_path / nothing)


@pytest.mark.data
def test_awkward_files_load_as_their_manifest_says(real_data):
    folder = real_data / "awkward"
    rows = json.loads((folder / "MANIFEST.json").read_text())
    images = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for row in rows:
            path = folder / row["file"]
            if row["file"] in BROKEN:
                assert row["pillow"] != "decodes"
                with pytest.raises(UserError, match=f"cannot read image .*{row['file']}: "):
                    load_image(path)
                continue
            images[row["file"]] = load_image(path)
            size = (row["height"], row["width"])
            size = size[::-1] if row["exif_orientation"] in (5, 6, 7, 8) else size
            assert images[row["file"]].shape == (*size, 3), row["file"]
            assert images[row["file"]].dtype == np.uint8
    assert len(images) == len(rows) - len(BROKEN)
    upright = [images[f"hopper_orientation_{n}.jpg"].astype(int) for n in (3, 6, 7)]
    for other in upright[1:]:  # compressed separately; a wrong turn differs by about 60
        assert np.abs(upright[0] - other).mean() < 6
    depth = images["nyu_depth_0.png"]
    assert depth.min() == round(1798 / 257) and depth.max() == round(3615 / 257)
    assert np.abs(images["pil123p.png"].astype(int) - images["pil123rgba.png"]).mean() < 6
    assert (images["transparent.webp"][0, 0] == 255).all()
    assert (images["tRNS_null_1x1.png"] == 255).all()
    red = images["pil_sample_cmyk.jpg"][2, 2].astype(int)
    assert red[0] > 200 and red[1:].max() < 60


@pytest.mark.data
def test_coco_images_have_the_size_their_annotations_state(real_data):
    path = real_data / "coco" / "annotations" / "instances_val2017.json"
    for row in json.loads(path.read_text())["images"][::5]:
        image = load_image(real_data / "coco" / "val2017" / row["file_name"])
        assert image.shape == (row["height"], row["width"], 3)
