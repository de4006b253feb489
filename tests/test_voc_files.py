"""XML and split lists of VOC as other systems write them."""

import unicodedata

import pytest

from dataset.voc_detection import VocDetection, parse_xml
from tests.test_datasets import voc_object, write_voc
from utils.errors import UserError

SIZE = "<size><width>30</width><height>20</height></size>"
DOG = voc_object("dog", (1, 1, 10, 20))


@pytest.fixture
def root(tmp_path):
    return write_voc(tmp_path, {"a": [DOG], "b": [DOG]})


def write_xml(root, content):
    path = root / "VOCdevkit" / "VOC2012" / "Annotations" / "a.xml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def write_list(root, content):
    path = root / "VOCdevkit" / "VOC2012" / "ImageSets" / "Main" / "train.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


ENCODINGS = {  # declared -> name that it can write
    **dict.fromkeys(("GBK", "gb2312", "GB18030", "big5", "euc-kr"), "人"),
    **dict.fromkeys(("shift_jis", "euc_jp", "iso-2022-jp"), "犬"),
    **dict.fromkeys(("windows-1251", "koi8-r"), "кот"),
    **dict.fromkeys(("iso-8859-1", "windows-1252", "utf-8", "UTF-16", "utf-16-le"), "é"),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_xml_is_read_in_every_encoding_that_it_may_declare(encoding):
    name = ENCODINGS[encoding]
    text = f'<?xml version="1.0" encoding="{encoding}"?>\n<annotation><n>{name}</n></annotation>'
    assert parse_xml(text.encode(encoding)).findtext("n") == name


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("declared", ["utf-8", "utf-16", None])
def test_a_byte_order_mark_decides(encoding, declared):
    head = f'<?xml version="1.0" encoding="{declared}"?>' if declared else ""
    content = f"{head}<annotation><n>é人</n></annotation>".encode(encoding)
    assert parse_xml(content).findtext("n") == "é人"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-32", "utf-7", "gbk"])
@pytest.mark.parametrize("bad", ["<!DOCTYPE a>", '<!DOCTYPE a [<!ENTITY b "c">]>'])
def test_document_types_are_refused_in_every_encoding(root, encoding, bad):
    head = f'<?xml version="1.0" encoding="{encoding}"?>{bad}'
    write_xml(root, f"{head}<annotation>{SIZE}{DOG}</annotation>".encode(encoding))
    with pytest.raises(UserError, match="declares a document type or entities"):
        VocDetection(root)


@pytest.mark.parametrize(
    "content, reason",
    [
        ("é".encode("gbk"), "not valid UTF-8"),
        (b'<?xml version="1.0" encoding="klingon"?><annotation/>', "no encoding 'klingon'"),
        (b'<?xml version="1.0" encoding="hex"?><annotation/>', "no encoding 'hex'"),
        (b"\xff\xfe\x00", "not valid UTF-16-LE"),
        (b"", "it is empty"),
    ],
)
def test_what_is_no_text_or_no_xml_is_refused_in_a_line(root, content, reason):
    write_xml(root, content)
    with pytest.raises(
        UserError, match=f"a.xml is not a valid VOC annotation .*{reason}"
    ) as caught:
        VocDetection(root)
    assert "\n" not in str(caught.value)


STRANGE = {
    "wrapped": f"<annotation>{SIZE}<objects>{DOG}</objects></annotation>",
    "upper case": f"<annotation>{SIZE}{DOG.replace('object>', 'Object>')}</annotation>",
    "of CVAT": "<annotations><image><box label='dog' xtl='1' ytl='1' xbr='9' ybr='9'/></image>"
    "</annotations>",
    "of Pascal's fields in a wrapper": f"<root><annotation>{DOG}</annotation></root>",
    "one level too deep": f"<annotation><page><item>{DOG}</item></page></annotation>",
    "boxes without objects": "<annotation><bndbox><xmin>1</xmin></bndbox></annotation>",
    "a web page": "<html><body>not found</body></html>",
}


@pytest.mark.parametrize("kind", STRANGE)
def test_boxes_that_stand_elsewhere_are_not_overlooked(root, kind):
    write_xml(root, STRANGE[kind])
    with pytest.raises(
        UserError, match="a.xml is not a valid VOC annotation .*(its root|it has boxes in)"
    ):
        VocDetection(root)
    rest = VocDetection(root, skip_bad=True)
    assert rest.image_ids == ["b"] and rest.annotation_errors.counts == {"xml": 1}


def test_a_namespace_is_left_out(root):
    for head in ('<annotation xmlns="http://x.y/z">', '<v:annotation xmlns:v="http://x.y/z">'):
        body = f"{SIZE}{DOG}"
        if "v:" in head:
            body = body.replace("<", "<v:").replace("<v:/", "</v:")
        write_xml(root, f"{head}{body}{head.split()[0].replace('<', '</')}>")
        assert VocDetection(root).objects(0)[0].tolist() == [[0, 0, 10, 20]]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("wanted", ["NFC", "NFD"])
def test_names_of_classes_are_one_whatever_their_normal_form(root, form, wanted):
    name = unicodedata.normalize(form, "café")
    write_xml(root, f"<annotation>{voc_object(name, (1, 1, 9, 9))}</annotation>")
    source = VocDetection(root, classes=[unicodedata.normalize(wanted, "café")])
    assert source.categories.names == {1: "café"} and len(source[0].boxes) == 1


def test_numbers_are_read_as_what_is_meant(root):
    for one, ten in (("1.0", "10.0"), (" 1 ", "\n10\n"), ("1e0", "1E1"), ("+1", "010")):
        write_xml(root, f"<annotation>{voc_object('dog', (one, one, ten, ten))}</annotation>")
        assert VocDetection(root).objects(0)[0].tolist() == [[0, 0, 10, 10]]
    for flag, wanted in (
        ("", False),
        ("null", False),
        ("1.0", True),
        ("True", True),
        (" 0 ", False),
    ):
        write_xml(root, f"<annotation>{voc_object('dog', (1, 1, 9, 9), flag)}</annotation>")
        assert VocDetection(root).objects(0)[2].tolist() == [wanted]
    for side, wanted in (("24.0", 24), (" 24 ", 24), ("", 0), ("null", 0)):
        write_xml(
            root, f"<annotation><size><height>{side}</height><width>30</width></size></annotation>"
        )
        assert VocDetection(root).stated_size(0)[0] == wanted


@pytest.mark.parametrize(
    "box, flag, reason",
    [
        (("one", 1, 9, 9), 0, "xmin of object 'dog' must be a number, got 'one'"),
        ((1, 1, "1_0", 9), 0, "xmax of object 'dog' must be a number, got '1_0'"),
        ((1, "", 9, 9), 0, "object 'dog' has no ymin"),
        ((1, 1, "null", 9), 0, "object 'dog' has no xmax"),
        ((1, 1, 9, "nan"), 0, "a.xml: box of 'dog'"),
        ((1, 1, 9, "inf"), 0, "a.xml: box of 'dog'"),
        ((1, 1, 9, 9), 2, "difficult of object 'dog' must be 0 or 1, got '2'"),
        ((1, 1, 9, 9), "often", "difficult of object 'dog' must be a number, got 'often'"),
        ((1, 1, 9, 9), "nan", "difficult of object 'dog' must be 0 or 1, got 'nan'"),
    ],
)
def test_what_is_no_number_is_refused_in_a_true_sentence(root, box, flag, reason):
    write_xml(root, f"<annotation>{SIZE}{voc_object('dog', box, flag)}</annotation>")
    with pytest.raises(UserError, match=reason):
        VocDetection(root)


def test_hidden_files_are_no_annotations(root):
    folder = root / "VOCdevkit" / "VOC2012"
    (folder / "Annotations" / "._a.xml").write_bytes(b"\0\5\26\7\0\2\0\0Mac OS X        ")
    (folder / "JPEGImages" / "._a.png").write_bytes(b"\0\5\26\7\0\2\0\0Mac OS X        ")
    (folder / "ImageSets" / "Main" / "._train.txt").write_bytes(b"\0\5\26\7")
    assert VocDetection(root).image_ids == ["a", "b"]


# ---- split lists -----------------------------------------------------------------------------

STEMS = ["frame", "frame 0", "frame 1", "a  b", "c -1", "é 1", "7"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("tail", ["", "  1", " -1", ".png", ".png 0"])
def test_a_line_that_names_an_image_is_that_image(tmp_path, encoding, end, tail):
    write_voc(tmp_path, dict.fromkeys(STEMS, []))
    write_xml(tmp_path, f"<annotation>{DOG}</annotation>")
    write_list(tmp_path, "".join(f"{stem}{tail}{end}" for stem in STEMS).encode(encoding))
    source = VocDetection(tmp_path)
    assert source.image_ids == STEMS and not source.annotation_errors.counts


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_in_another_normal_form_find_image_and_annotation(tmp_path, form):
    stems = [unicodedata.normalize(form, stem) for stem in ("é1", "ñ 2", "ü")]
    write_voc(tmp_path, {stem: [DOG] for stem in stems})
    other = unicodedata.normalize("NFD" if form == "NFC" else "NFC", "é1\nñ 2 -1\nü.png\n")
    write_list(tmp_path, other)
    folder = tmp_path / "VOCdevkit" / "VOC2012" / "Annotations"
    for path in list(folder.iterdir()):
        path.rename(folder / unicodedata.normalize("NFC", path.name).upper())
    source = VocDetection(tmp_path)
    assert source.image_ids == stems and all(len(sample.boxes) == 1 for sample in source)


def test_a_missing_image_is_shown_as_the_list_has_it(root):
    write_list(root, "a\nno  such 1\n")
    with pytest.raises(UserError, match="image 'no  such 1' of split 'train' is missing"):
        VocDetection(root)


def test_folders_are_listed_without_the_devkit(root):
    with pytest.raises(UserError, match=r"there is 2012; choose .*voc_sets.*--split$"):
        VocDetection(root, "2007:train")
