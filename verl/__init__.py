"""GRPO for vision-language policies on Ray. Knows no video and imports nothing else of the project."""
