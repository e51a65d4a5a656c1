# Thin: the logic is in tools/dev.py, which does the same on Windows without make (python tools/dev.py test).
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
export VENV
DEV := $(PYTHON) tools/dev.py

.DEFAULT_GOAL := help
.PHONY: help env demo test test-fast comfyui lint clean

help:       ## this list
	@awk -F '## ' '/^[a-z-]+: +##/ { split($$1, name, ":"); printf "make %-10s %s\n", name[1], $$2 }' Makefile
	@echo "Variables: PYTHON (makes the environment), VENV (its folder), COMFYUI_PATH, TORCH_INDEX_URL, ARGS (passed on)"

env:        ## the environment: PyTorch, LoRA Loom, and ComfyUI's requirements where one is found
	@$(DEV) env

demo:       ## train a LoRA on the toy base and show before and after, through ComfyUI where one is found
	@$(DEV) demo $(ARGS)

test:       ## every test, the host tests too where a ComfyUI is found
	@$(DEV) test $(ARGS)

test-fast:  ## the tests that need neither ComfyUI nor a browser nor patience
	@$(DEV) test-fast $(ARGS)

comfyui:    ## install ComfyUI with comfy-cli into its default place (needs the internet; ARGS=--nvidia)
	@$(DEV) comfyui $(ARGS)

lint:       ## ruff
	@$(DEV) lint

clean:      ## remove what builds and tests leave behind
	@$(DEV) clean
