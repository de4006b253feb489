# Everything starts here: `make demo` and `make test` need only python3 (3.10 to 3.13) and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_DATA := data/demo
DEMO_WEIGHTS := weights/demo.safetensors
DEMO_IMAGES := 200
DEMO_OUT := demo
DEMO_TUNING := max_minutes=3
DEMO_PHOTOS := $(addprefix dataset/bccd/images/val/,BloodImage_00035.jpg BloodImage_00111.jpg \
    BloodImage_00216.jpg BloodImage_00410.jpg)
BENCHMARKS := decode onnx_decode train_step data tasks
BENCH_OUT := results/bench
# Files of tests run side by side, in a process for each core (about 1.5 GB each), longest first.
IN_PARALLEL := -n logical --maxprocesses=4 --dist loadfile --no-loadscope-reorder
DECODING_TESTS := $(addprefix tests/,test_generate.py test_native_step.py test_static_step.py \
    test_models.py test_draws.py)

.PHONY: help install extras demo demo-data test test-processors test-slow journeys lint format bench clean

help:  ## this list
	@echo "make <target>, with PYTHON=... to choose the interpreter that .venv is made from"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP)  ## create .venv and install what the project needs

$(STAMP): requirements.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "$(PYTHON) must be Python 3.10 or newer; name one: make PYTHON=python3.12 ..." >&2; exit 2; }
	@echo "== Installing into $(VENV) (a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	    { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment; Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    -r requirements.txt -r requirements-dev.txt
	@touch $(STAMP)

extras: $(VENV)/.extras  ## install what optional features need (requirements-extras.txt, requirements-app.txt)

$(VENV)/.extras: requirements-extras.txt requirements-app.txt $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    -r requirements-extras.txt -r requirements-app.txt
	@touch $@

demo-data: $(STAMP)  ## draw the synthetic demo set in data/demo (once)
	@echo
	@echo "== Drawing the demo set: 2200 pictures in COCO and VOC layout, in $(DEMO_DATA)"
	@$(BIN)/python download/make_demo_dataset.py --out $(DEMO_DATA)

demo: demo-data  ## the whole job in small: evaluation, inference, fine-tuning on photographs
	@echo
	@echo "== Evaluating $(DEMO_WEIGHTS) in all its tasks on $(DEMO_IMAGES) pictures it was not trained on"
	@$(BIN)/python infer/evaluate.py --task all --preset demo_multi_task --weights $(DEMO_WEIGHTS) \
	    --out-dir $(DEMO_OUT)/evaluation --set eval_limit=$(DEMO_IMAGES)
	@echo
	@echo "== What these weights see in images/demo.jpg"
	@$(BIN)/python infer/infer_single_image_multi_task.py --image images/demo.jpg \
	    --weights $(DEMO_WEIGHTS) --out-dir $(DEMO_OUT) --num-captions 3 --timing
	@echo
	@echo "== Fine-tuning them on 60 photographs of blood cells, classes they have never seen (2 to 3 minutes);"
	@echo "== AP is that on 20 other photographs, before the first step and after every few epochs"
	@$(BIN)/python train/train_coco_object_detection.py --preset finetune \
	    --set data=dataset/bccd init_weights=$(DEMO_WEIGHTS) runs_dir=$(DEMO_OUT)/runs eval_first=true $(DEMO_TUNING)
	@echo
	@echo "== What the best of these weights see in photographs they were not trained on"
	@$(BIN)/python infer/infer_single_image_object_detection.py --out-dir $(DEMO_OUT) \
	    --weights $$(ls -td $(DEMO_OUT)/runs/detection/*/ | head -1)best.safetensors \
	    --image $(DEMO_PHOTOS)
	@echo
	@echo "== Done: look at the pictures in $(DEMO_OUT)/; your own photographs: docs/own_data.md"

test: lint  ## linter, formatter check and the tests (no network, no GPU)
	@$(BIN)/python -m pytest $(IN_PARALLEL)

test-processors: $(STAMP)  ## the tests of decoding, as on older processors and with other thread counts
	@for kind in "default 3" "avx2 1"; do set -- $$kind; echo "== $$1 instructions, $$2 threads"; \
	    ATEN_CPU_CAPABILITY=$$1 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 OMP_NUM_THREADS=$$2 \
	    OMP_WAIT_POLICY=passive \
	    $(BIN)/python -m pytest $(IN_PARALLEL) $(DECODING_TESTS) || exit; done

test-slow: $(STAMP)  ## the tests that train for minutes
	@$(BIN)/python -m pytest -m slow

journeys: $(STAMP)  ## the commands of README.md in a fresh clone, one after the other (15 minutes)
	@$(BIN)/python -m pytest -m slow tests/journeys

lint: $(STAMP)  ## ruff check and ruff format --check
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(STAMP)  ## let ruff fix and format the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(VENV)/.extras  ## measure decoding, training, its data and all tasks; tables, and JSON in results/bench/
	@test -d benchmarks || { echo "there is no folder benchmarks/ in this checkout" >&2; exit 2; }
	@mkdir -p $(BENCH_OUT)
	@for name in $(BENCHMARKS); do echo "== benchmarks/$$name.py"; \
	    $(BIN)/python benchmarks/$$name.py --json $(BENCH_OUT)/$$name.json || exit; done

clean:  ## remove caches, the demo set and demo results; keeps .venv, runs and your data
	rm -rf $(DEMO_OUT) $(DEMO_DATA) .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -type d -prune -exec rm -rf {} +
