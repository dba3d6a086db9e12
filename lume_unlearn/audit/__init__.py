"""Probes of an unlearned model, and the verdict: are the forget rows gone?"""
