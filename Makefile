# `make demo` and `make test` need nothing but Python 3.11 or newer: each creates the environment that it uses.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
EXTRAS := convert,remote,training,deepspeed,peft,dev

.PHONY: install demo test test-inductor fuzz test-peers test-oldest test-python test-xla test-ecosystem bench package style format types reference reference-export reference-real-size clean

install: $(VENV)/.installed

# torch comes first and pinned, so that no other requirement chooses its build.
$(VENV)/.installed: setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: run make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$(EXTRAS)]"
	touch $@

demo: install
	PATH="$(abspath $(BIN)):$$PATH" bash tests/demo.sh

# Three workers, also on two cores: tests of several processes wait for each other.
test: install
	$(BIN)/python -m pytest --numprocesses 3 --dist worksteal

# Compiled models with Inductor, which takes seconds for each kernel, instead of `aot_eager`.
test-inductor: install
	COMPILE_BACKEND=inductor $(BIN)/python -m pytest tests/models/test_generation.py tests/models/test_attention_by_rows.py \
	    -k compiled

# All fuzzers at length: this many inputs each. The tests run the same ones for some seconds.
FUZZ_INPUTS ?= 100000
fuzz: install
	FUZZ_INPUTS=$(FUZZ_INPUTS) $(BIN)/python -m pytest --numprocesses 2 --dist worksteal tests/fuzz

# transformers' own tests of models, from the source distribution of the release that is installed, on our models.
# That lacks the tests of generation and export: for these, too, give TRANSFORMERS_TESTS=CHECKOUT/tests.
PEERS := build/peers
TRANSFORMERS_TESTS ?= $(PEERS)/tests
test-peers: install $(PEERS)/.ready
	PYTHONPATH=$(abspath $(PEERS)/packages) TRANSFORMERS_TESTS=$(TRANSFORMERS_TESTS) HF_HUB_OFFLINE=1 $(BIN)/python -m pytest \
	    --override-ini addopts="--import-mode=importlib" -W ignore -rfExX --numprocesses 2 --dist worksteal tests/peers

$(PEERS)/.ready: constraints.txt
	rm -rf $(PEERS) && mkdir -p $(PEERS)/sdist
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt --target $(PEERS)/packages parameterized
	$(BIN)/python -m pip download --quiet --no-deps --no-binary transformers --dest $(PEERS) \
	    "transformers==$$($(BIN)/python -c 'import transformers; print(transformers.__version__)')"
	tar --extract --gzip --strip-components 1 --directory $(PEERS)/sdist --file $(PEERS)/transformers-*.tar.gz
	mv $(PEERS)/sdist/tests $(PEERS)/tests && rm -rf $(PEERS)/sdist
	touch $@

# The models on the oldest releases that setup.py admits; for the rest of the code the versions hardly matter.
test-oldest: $(VENV)-oldest/.installed
	$(VENV)-oldest/bin/python -m pytest --numprocesses 2 tests/models

$(VENV)-oldest/.installed: setup.py constraints-oldest.txt
	$(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --quiet --constraint constraints-oldest.txt torch
	$(VENV)-oldest/bin/python -m pip install --quiet --constraint constraints-oldest.txt --editable ".[peft]" pytest pytest-xdist
	touch $@

# Models, converter and training on another version of Python, which must be installed: make test-python PY=3.13
PY ?= 3.13
test-python: $(VENV)-python$(PY)/.installed
	$(VENV)-python$(PY)/bin/python -m pytest --numprocesses 2 --dist worksteal tests/models tests/convert tests/training

$(VENV)-python$(PY)/.installed: setup.py constraints.txt
	python$(PY) -m venv $(VENV)-python$(PY)
	$(VENV)-python$(PY)/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(VENV)-python$(PY)/bin/python -m pip install --quiet --constraint constraints.txt \
	    --editable ".[convert,remote,training,peft,dev]"
	touch $@

# Training through torch_xla, on the CPU. Needs 8 GB: the releases of torch that fit it come with CUDA's libraries.
# The tiny models of the tests run for seconds and compile for minutes, unless the compiler is told not to try hard.
test-xla: $(VENV)-xla/.installed
	PJRT_DEVICE=CPU XLA_FLAGS="--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true" \
	    $(VENV)-xla/bin/python -m pytest tests/xla

$(VENV)-xla/.installed: setup.py constraints-xla.txt
	$(PYTHON) -m venv $(VENV)-xla
	$(VENV)-xla/bin/python -m pip install --quiet --constraint constraints-xla.txt torch torch_xla
	$(VENV)-xla/bin/python -m pip install --quiet --constraint constraints-xla.txt --editable ".[training,peft,xla]" pytest
	touch $@

# Other people's programs that need versions of their own, on what we write for them.
test-ecosystem: $(VENV)-ecosystem/.installed $(VENV)-ecosystem-onnx/.installed $(VENV)-ecosystem-trackers/.installed
	ECOSYSTEM_ONNX_PYTHON=$(abspath $(VENV))-ecosystem-onnx/bin/python HF_HUB_OFFLINE=1 \
	    $(VENV)-ecosystem/bin/python -m pytest tests/ecosystem
	HF_HUB_OFFLINE=1 $(VENV)-ecosystem-trackers/bin/python -m pytest tests/ecosystem/test_programs.py -k tracker

# llama-cpp-python is compiled, which takes some minutes.
$(VENV)-ecosystem/.installed: setup.py constraints.txt constraints-ecosystem.txt
	$(PYTHON) -m venv $(VENV)-ecosystem
	$(VENV)-ecosystem/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(VENV)-ecosystem/bin/python -m pip install --quiet --constraint constraints.txt --constraint constraints-ecosystem.txt \
	    --editable ".[convert,gguf,onnx,training]" pytest sentence-transformers lm_eval diffusers trl llama-cpp-python tensorboard wandb
	touch $@

$(VENV)-ecosystem-onnx/.installed: constraints-ecosystem-onnx.txt
	$(PYTHON) -m venv $(VENV)-ecosystem-onnx
	$(VENV)-ecosystem-onnx/bin/python -m pip install --quiet --constraint constraints-ecosystem-onnx.txt torch
	$(VENV)-ecosystem-onnx/bin/python -m pip install --quiet --constraint constraints-ecosystem-onnx.txt \
	    transformers optimum optimum-onnx onnx onnxruntime
	touch $@

# MLflow wants an older pyarrow than constraints.txt has, and trackio an older Pillow.
$(VENV)-ecosystem-trackers/.installed: setup.py constraints-ecosystem-trackers.txt
	$(PYTHON) -m venv $(VENV)-ecosystem-trackers
	$(VENV)-ecosystem-trackers/bin/python -m pip install --quiet --constraint constraints-ecosystem-trackers.txt torch
	$(VENV)-ecosystem-trackers/bin/python -m pip install --quiet --constraint constraints-ecosystem-trackers.txt \
	    --editable ".[convert]" accelerate mlflow trackio pytest
	touch $@

# Times everything that runs on a CPU, side by side with its rivals.
bench: install
	$(BIN)/python -m benchmarks.encode --rounds 3 --output benchmarks/results/encode
	$(BIN)/python -m benchmarks.train_step --rounds 3 --output benchmarks/results/train_step
	$(BIN)/python -m benchmarks.generate --rounds 3 --output benchmarks/results/generate
	$(BIN)/python -m benchmarks.talking_heads --rounds 1 --shapes 2x512/114 --lengths 512 1024 --output benchmarks/results/talking_heads

# Wheel and sdist in dist/, built with the environment's own setuptools. A test installs both.
package: install
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist

style: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The type checker wants the packages where they install to: a tree of links shows them there.
types: install
	rm -rf build/types && mkdir -p build/types/t5_experimental
	ln -s $(abspath t5_experimental)/* $(abspath convert) $(abspath training) build/types/t5_experimental/
	MYPYPATH=build/types $(BIN)/mypy --package t5_experimental

# Runs the original Mesh TensorFlow code once more and compares; needs Python 3.11, see tests/reference/README.md.
reference:
	bash tests/reference/make_reference.sh build/reference

# Golden checkpoints, converted and exported again, restored by the original code; `make reference` makes its environment.
reference-export: install
	rm -rf build/exported && mkdir -p build/exported
	for name in $(notdir $(patsubst %/,%,$(wildcard tests/reference/golden/*/))); do \
	    $(BIN)/t5-experimental convert tests/reference/golden/$$name build/exported/converted/$$name --with-optimizer && \
	    $(BIN)/t5-experimental export build/exported/converted/$$name build/exported/$$name || exit 1; done
	rm -rf build/exported/converted
	build/reference/venv/bin/python tests/reference/restore.py build/exported/*

# One step of released architectures at real size, by the original and by us; `make reference` makes its environment.
reference-real-size: install
	bash tests/reference/real_size.sh build/reference $(abspath $(BIN))

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-xla $(VENV)-ecosystem $(VENV)-ecosystem-onnx $(VENV)-ecosystem-trackers build dist *.egg-info
