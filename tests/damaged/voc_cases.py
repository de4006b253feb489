"""Damaged files of a VOCdevkit."""

from tests.damaged import readers
from tests.damaged.case import Case, cut, file

BOMB = '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
LEAK = '<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]>'
SET = "VOCdevkit/VOC2012/ImageSets/Main/train.txt"
VOC = [
    Case(
        "VOC XML",
        "cut off",
        cut("VOCdevkit/VOC2012/Annotations/1.xml", 0.5),
        readers.voc,
        "1.xml is not a valid VOC annotation",
    ),
    Case(
        "VOC XML",
        "missing",
        lambda p: (p.voc / "Annotations/1.xml").unlink(),
        readers.voc,
        "1.xml does not exist",
    ),
    Case(
        "VOC XML",
        "entities that multiply",
        lambda p: p.write_xml(head=BOMB, name="&b;"),
        readers.voc,
        "declares a document type or entities",
    ),
    Case(
        "VOC XML",
        "entity that names another file",
        lambda p: p.write_xml(head=LEAK, name="&a;"),
        readers.voc,
        "declares a document type or entities",
    ),
    Case(
        "VOC XML",
        "unknown encoding",
        lambda p: p.write_xml(head='<?xml version="1.0" encoding="x-1"?>'),
        readers.voc,
        "1.xml is not a valid VOC annotation",
    ),
    Case(
        "VOC XML",
        "box with nan",
        lambda p: p.write_xml(box=(1, "nan", 9, 9)),
        readers.voc,
        "1.xml: box of 'cat'",
    ),
    Case(
        "VOC XML",
        "box with a word",
        lambda p: p.write_xml(box=(1, "two", 9, 9)),
        readers.voc,
        "ymin of object .cat. must be a number",
    ),
    Case(
        "VOC XML",
        "object without a name",
        lambda p: p.write_xml(name=""),
        readers.voc,
        "an object has no name",
    ),
    Case(
        "VOC XML",
        "height inf",
        lambda p: p.write_xml(size=("inf", 60)),
        readers.voc,
        "height must be 1 to",
    ),
    Case(
        "VOC XML",
        "another size than the image",
        lambda p: p.write_xml(size=(50, 60)),
        readers.voc,
        "is 40x60 .HxW., but its annotation says 50x60",
    ),
    Case(
        "VOC XML",
        "box of width 0",
        lambda p: p.write_xml(box=(9, 5, 9, 20)),
        readers.voc,
        "boxes without an area, 1 .1.xml",
        notice=True,
    ),
    Case(
        "VOC XML",
        "box outside the image",
        lambda p: p.write_xml(box=(90, 5, 99, 20)),
        readers.voc,
        "boxes outside their image, 1 .1.xml",
        notice=True,
    ),
    Case(
        "VOC split list",
        "names ../../secret",
        file(SET, "../../secret\n"),
        readers.voc,
        "'../../secret' of split 'train' is missing",
    ),
    Case(
        "VOC split list",
        "is no text",
        file(SET, b"\xff\xfe\x00"),
        readers.voc,
        "is not valid UTF-16-LE",
    ),
    Case("VOC split list", "empty", file(SET, ""), readers.voc, "is empty"),
]
