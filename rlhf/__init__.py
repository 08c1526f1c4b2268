"""Reinforcement learning from human feedback: language model, SFT, reward model, PPO, DPO, GRPO."""
