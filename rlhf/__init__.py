"""Reinforcement learning from human feedback: language models, SFT, reward models, PPO, DPO, GRPO."""
