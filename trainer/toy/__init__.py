"""The toy base: a text-to-image model small enough for git, so that learning is testable on any CPU."""
