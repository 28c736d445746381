"""Small worlds (part of entropy-theory): softmax bandits and CartPole, all seeds trained at once."""
