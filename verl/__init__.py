"""GRPO for vision-language policies on Ray. It imports nothing else of the project and knows a task by its plug-ins."""
