"""What happens beside the optimiser steps: measuring, recording, scoring, stopping."""
