"""People with joints: poses by forward kinematics, clothes, and which side of them is seen."""

import numpy as np

from dataset.demo.drawing import (
    BRIGHT,
    Colour,
    Part,
    Thing,
    draw_colour,
    ellipse,
    limb,
    polygon,
    rectangle,
    smooth,
    tone,
)

KEYPOINTS = [
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder",
    "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip",
    "left_knee", "right_knee", "left_ankle", "right_ankle",
]  # fmt: skip
SKELETON = [
    [16, 14], [14, 12], [17, 15], [15, 13], [12, 13], [6, 12], [7, 13], [6, 7], [6, 8], [7, 9],
    [8, 10], [9, 11], [2, 3], [1, 2], [1, 3], [2, 4], [3, 5], [4, 6], [5, 7],
]  # fmt: skip
SKIN = [
    (255, 219, 184),
    (241, 194, 152),
    (224, 172, 118),
    (172, 116, 74),
    (120, 76, 48),
    (88, 56, 38),
]
HAIR = [(40, 28, 22), (92, 58, 32), (150, 100, 52), (214, 178, 104), (150, 62, 32), (168, 168, 168)]
ARM, FOREARM, THIGH, SHIN, TORSO = 0.155, 0.15, 0.235, 0.225, 0.3

Joints = dict[str, np.ndarray]
Angles = dict[str, tuple[float, float]]  # limb -> degrees of its two bones, 0 hangs down


def _flat_angles(rng: np.random.Generator, action: str) -> Angles:
    """Bone angles seen from the front or the back; positive is away from the body."""
    u = rng.uniform
    hanging = {side: (u(8, 24), u(-2, 22)) for side in ("left", "right")}
    arms = {f"{side}_arm": hanging[side] for side in hanging}
    if action == "waving":
        side = ("left", "right")[rng.integers(2)]
        arms[f"{side}_arm"] = (u(95, 140), u(150, 195))
    elif action == "raising both arms":
        arms = {f"{side}_arm": (u(125, 160), u(150, 180)) for side in hanging}
    elif action == "stretching":
        arms = {f"{side}_arm": (u(78, 100), u(78, 100)) for side in hanging}
    elif rng.random() < 0.3:  # hands on the hips
        arms = {f"{side}_arm": (u(42, 54), u(-55, -40)) for side in hanging}
    spread = u(2, 14)
    legs = {f"{side}_leg": (spread + u(-2, 3), spread + u(-5, 2)) for side in hanging}
    return arms | legs


def _profile_angles(rng: np.random.Generator, action: str) -> Angles:
    """Bone angles seen from the side; positive is forwards."""
    u = rng.uniform
    front, rear = ("left", "right") if rng.random() < 0.5 else ("right", "left")
    if action == "walking":
        swing = u(17, 30)
        return {
            f"{front}_leg": (swing, swing - u(2, 14)), f"{rear}_leg": (-swing, -swing - u(8, 30)),
            f"{front}_arm": (-swing, -swing + u(5, 30)), f"{rear}_arm": (swing, swing + u(10, 40)),
        }  # fmt: skip
    if action == "running":
        return {
            f"{front}_leg": (u(45, 65), u(-25, 10)), f"{rear}_leg": (u(-30, -15), u(-95, -60)),
            f"{front}_arm": (u(-55, -35), u(35, 60)), f"{rear}_arm": (u(25, 45), u(110, 135)),
        }  # fmt: skip
    if action == "sitting":
        return {f"{side}_leg": (u(76, 94), u(-12, 12)) for side in (front, rear)} | {
            f"{side}_arm": (u(5, 30), u(45, 80)) for side in (front, rear)
        }
    arms = {f"{side}_arm": (u(-8, 10), u(0, 18)) for side in (front, rear)}
    if action == "waving":
        arms[f"{front}_arm"] = (u(100, 140), u(140, 185))
    return arms | {f"{side}_leg": (u(-6, 6), u(-8, 0)) for side in (front, rear)}


def _place_joints(angles: Angles, view: str, lean: float, build: float) -> Joints:
    """Joint positions around the middle of the hips; units of a body's height, y down."""
    forward = {"right": 1.0, "left": -1.0}.get(view)
    lean_at = np.array([np.sin(np.radians(lean)), -np.cos(np.radians(lean))])
    joints = {}
    for side in ("left", "right"):
        # seen from the front a person's own left is on the right of the picture
        outward = (1.0 if side == "left" else -1.0) * (-1.0 if view == "back" else 1.0)
        if forward is not None:  # the far side shows a little further back
            near = (side == "right") == (view == "right")
            hip = np.array([0.012 * forward * (1 if near else -1), 0.0])
            shoulder = TORSO * lean_at * (forward, 1) + (0.016 * forward * (1 if near else -1), 0)
            sign = forward
        else:
            hip = np.array([0.062 * build * outward, 0.0])
            shoulder = TORSO * lean_at + (0.112 * build * outward, 0)
            sign = outward
        for root, name, upper, lower in (
            (shoulder, "arm", ARM, FOREARM), (hip, "leg", THIGH, SHIN),
        ):  # fmt: skip
            first, second = np.radians(angles[f"{side}_{name}"])
            middle = root + upper * np.array([sign * np.sin(first), np.cos(first)])
            end = middle + lower * np.array([sign * np.sin(second), np.cos(second)])
            names = ("shoulder", "elbow", "wrist") if name == "arm" else ("hip", "knee", "ankle")
            for joint, point in zip(names, (root, middle, end), strict=True):
                joints[f"{side}_{joint}"] = point
    return joints


def _head(
    joints: Joints, view: str, size: float, skin: Colour, hair: Colour, bun: bool
) -> list[Part]:
    """Draws the head above the shoulders and adds its five points to `joints`."""
    neck = (joints["left_shoulder"] + joints["right_shoulder"]) / 2
    rx, ry = 0.072 * size, 0.09 * size
    cx, cy = neck + (0, -0.035 - ry)
    side = {"front": 1.0, "back": -1.0}.get(view)
    parts = [Part(limb(neck + (0, 0.01), (cx, cy), 0.034, 0.034), tone(skin, 0.88), tag="neck")]

    def add(points: np.ndarray, colour: Colour) -> None:
        parts.append(Part(points * (rx, ry) + (cx, cy), colour, tag="head"))

    def mark(name: str, x: float, y: float) -> None:
        joints[name] = np.array([cx + x * rx, cy + y * ry])

    if side is not None:
        if bun:
            add(smooth((-1.15, 0.9), (-1.2, -0.4), (0, -1.2), (1.2, -0.4), (1.15, 0.9)), hair)
        for x in (-1, 1):
            add(ellipse(x, 0.05, 0.2, 0.22), tone(skin, 0.92))
        add(ellipse(0, 0, 1, 1), skin)
        if view == "back":
            add(ellipse(0, -0.12, 1.02, 0.98), hair)
        else:
            add(smooth((-1.05, 0.0), (-0.95, -0.75), (0, -1.13), (0.95, -0.75), (1.05, 0.0),
                       (0.75, -0.42), (0.1, -0.55), (-0.7, -0.4)), hair)  # fmt: skip
            for x in (-0.4, 0.4):
                add(ellipse(x, -0.08, 0.2, 0.15), (250.0, 250.0, 250.0))
                add(ellipse(x, -0.08, 0.11, 0.13), (40.0, 30.0, 30.0))
            add(polygon((-0.12, 0.25), (0.12, 0.25), (0, -0.02)), tone(skin, 0.78))
            add(smooth((-0.32, 0.5), (0, 0.56), (0.32, 0.5), (0, 0.68)), (178.0, 60.0, 60.0))
        for name, own in (("left", side), ("right", -side)):
            mark(f"{name}_eye", 0.4 * own, -0.08)
            mark(f"{name}_ear", own, 0.05)
        mark("nose", 0, 0.2)
        return parts
    d = 1.0 if view == "right" else -1.0
    flip = np.array([d, 1.0])
    if bun:
        add(smooth((-0.2, -1.1), (-1.25, -0.6), (-1.35, 0.9), (-0.5, 0.9)) * flip, hair)
    add(polygon((0.85, -0.05), (1.28, 0.28), (0.8, 0.4)) * flip, tone(skin, 0.95))
    add(ellipse(0, 0, 1, 1), skin)
    add(smooth((0.75, -0.6), (0.2, -1.12), (-0.75, -0.85), (-1.08, 0.0), (-0.8, 0.55),
               (-0.35, 0.35), (-0.25, -0.3), (0.3, -0.5)) * flip, hair)  # fmt: skip
    add(ellipse(-0.18 * d, 0.08, 0.2, 0.24), tone(skin, 0.85))
    add(ellipse(0.55 * d, -0.1, 0.17, 0.15), (250.0, 250.0, 250.0))
    add(ellipse(0.6 * d, -0.1, 0.1, 0.13), (40.0, 30.0, 30.0))
    add(limb((0.5 * d, 0.55), (0.85 * d, 0.52), 0.06, 0.06), (178.0, 60.0, 60.0))
    for name in ("left", "right"):
        mark(f"{name}_eye", 0.55 * d, -0.1)
        mark(f"{name}_ear", -0.18 * d, 0.08)
    mark("nose", 1.15 * d, 0.25)
    return parts


def _limbs(
    joints: Joints, view: str, side: str, clothes: dict, dim: float
) -> dict[str, list[Part]]:
    """Parts of one arm and one leg."""
    shirt, trousers, skin, shoe = (
        tone(clothes[k], dim) for k in ("shirt", "trousers", "skin", "shoe")
    )
    thick = clothes["build"]

    def bone(a: str, b: str, r0: float, r1: float, colour: Colour, tag: str) -> Part:
        ends = joints[f"{side}_{a}"], joints[f"{side}_{b}"]
        return Part(limb(*ends, r0 * thick, r1 * thick), colour, tag=f"{side}_{tag}")

    wrist, ankle = joints[f"{side}_wrist"], joints[f"{side}_ankle"]
    arm = [
        bone("shoulder", "elbow", 0.038, 0.03, shirt, "arm"),
        bone("elbow", "wrist", 0.028, 0.023, shirt if clothes["long_sleeves"] else skin, "arm"),
        Part(ellipse(*wrist, 0.03, 0.03), skin, tag=f"{side}_arm"),
    ]
    toe = {"right": 0.045, "left": -0.045}.get(view, 0.0)
    width = 0.055 if toe else 0.038
    leg = [
        bone("hip", "knee", 0.058, 0.042, trousers, "leg"),
        bone("knee", "ankle", 0.04, 0.028, skin if clothes["shorts"] else trousers, "leg"),
        Part(
            ellipse(ankle[0] + toe * 0.6, ankle[1] + 0.018, width, 0.028), shoe, tag=f"{side}_leg"
        ),
    ]
    return {"arm": arm, "leg": leg}


def _torso(joints: Joints, view: str, clothes: dict) -> list[Part]:
    hips = (joints["left_hip"] + joints["right_hip"]) / 2
    neck = (joints["left_shoulder"] + joints["right_shoulder"]) / 2
    build = clothes["build"]
    upper, lower = (0.128 * build, 0.098 * build) if view in ("front", "back") else (0.075, 0.068)
    cx, cy = neck
    hx, hy = hips
    seat = ellipse(hx, hy, lower, 0.055)
    outline = smooth(
        (cx - upper * 0.5, cy - 0.04), (cx + upper * 0.5, cy - 0.04), (cx + upper, cy + 0.02),
        (cx + upper * 0.85 + (hx - cx) * 0.5, (cy + hy) / 2), (hx + lower, hy + 0.0),
        (hx, hy + 0.03), (hx - lower, hy + 0.0),
        (cx - upper * 0.85 + (hx - cx) * 0.5, (cy + hy) / 2), (cx - upper, cy + 0.02),
    )  # fmt: skip
    parts = [
        Part(seat, clothes["trousers"], tag="torso"),
        Part(outline, clothes["shirt"], tag="torso"),
    ]
    if clothes["stripe"] is not None:
        for y in (0.3, 0.6):
            level = cy + (hy - cy) * y
            box = rectangle(min(cx, hx) - upper, level - 0.016, max(cx, hx) + upper, level + 0.016)
            parts.append(Part(box, clothes["stripe"], inside=True, tag="torso"))
    return parts


def make_person(rng: np.random.Generator) -> Thing:
    """A person in one of the poses, seen from the front, the back or a side."""
    profile = rng.random() < 0.5
    if profile:
        view = ("left", "right")[rng.integers(2)]
        deeds = ("walking", "walking", "running", "sitting", "standing", "waving")
        action = deeds[rng.integers(6)]
        angles = _profile_angles(rng, action)
        lean = {"running": rng.uniform(5, 16), "walking": rng.uniform(0, 6)}.get(
            action, rng.uniform(-4, 4)
        )
    else:
        view = "front" if rng.random() < 0.7 else "back"
        deeds = ("standing", "standing", "waving", "raising both arms", "stretching")
        action = deeds[rng.integers(5)]
        angles, lean = _flat_angles(rng, action), rng.uniform(-5, 5)
    name = (*BRIGHT, "white", "black")[rng.integers(len(BRIGHT) + 2)]
    shirt = draw_colour(rng, name)
    lower = str(rng.choice([n for n in ("blue", "black", "gray", "brown", "green") if n != name]))
    clothes = {
        "shirt": shirt, "trousers": tone(draw_colour(rng, lower), 0.8),
        "skin": SKIN[rng.integers(6)],
        "shoe": draw_colour(rng, str(rng.choice(["black", "red", "white", "brown"]))),
        "build": rng.uniform(0.9, 1.2), "long_sleeves": rng.random() < 0.5,
        "shorts": rng.random() < 0.35,
        "stripe": tone(shirt, 0.6) if rng.random() < 0.2 else None,
    }  # fmt: skip
    hair = HAIR[rng.integers(6)]
    joints = _place_joints(angles, view, lean, clothes["build"])
    head = _head(joints, view, rng.uniform(0.95, 1.3), clothes["skin"], hair, rng.random() < 0.4)
    near, far = ("right", "left") if view in ("right", "front") else ("left", "right")
    close = _limbs(joints, view, near, clothes, 1.0)
    other = _limbs(joints, view, far, clothes, 0.82 if profile else 1.0)
    torso = _torso(joints, view, clothes)
    if profile:
        parts = [*other["arm"], *other["leg"], *close["leg"], *torso, *head, *close["arm"]]
    else:
        parts = [*other["leg"], *close["leg"], *torso, *head, *other["arm"], *close["arm"]]
    prop = []
    if action == "sitting":
        foot = max(joints["left_ankle"][1], joints["right_ankle"][1]) + 0.045
        wood = draw_colour(rng, "brown")
        prop = [Part(rectangle(-0.13, 0.055, 0.13, 0.09), wood)]
        prop += [
            Part(rectangle(x - 0.02, 0.08, x + 0.02, foot), tone(wood, 0.7)) for x in (-0.1, 0.1)
        ]
    points = np.stack([joints[k] for k in KEYPOINTS])
    owners = [_owners(k, view, near) for k in KEYPOINTS]
    return Thing("person", name, parts, view, action, points, owners, prop)


def _owners(joint: str, view: str, near: str) -> tuple[str, ...]:
    """Tags that show a joint rather than hide it; empty where nobody could place it."""
    side, _, part = joint.rpartition("_")
    if part in ("nose", "eye", "ear"):
        hidden = (view == "back" and part != "ear") or (
            view in ("left", "right") and part != "nose" and side != near
        )
        return () if hidden else ("head",)
    own = f"{side}_arm" if part in ("shoulder", "elbow", "wrist") else f"{side}_leg"
    on_body = part in ("shoulder", "hip") and (view in ("front", "back") or side == near)
    return (own, "torso") if on_body else (own,)
