"""From videos and sentences to masks: the policy answers, a tracker turns boxes into masks, a run folder keeps both."""
