"""Probes of an unlearned model, and the verdict: is what was asked to be forgotten gone?"""
