// Judges pods by Kubernetes' own PodSecurity library: one pod as JSON a line on stdin, for each one line of JSON on
// stdout: {"allowed": true} or {"allowed": false, "reason": ..., "detail": ...}. A line that is no pod, by strict
// decoding, is {"error": ...}. The level is restricted, of the library's newest minor version.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	kjson "sigs.k8s.io/json"
)

type verdict struct {
	Allowed bool   `json:"allowed"`
	Reason  string `json:"reason,omitempty"`
	Detail  string `json:"detail,omitempty"`
	Error   string `json:"error,omitempty"`
}

func judge(evaluator policy.Evaluator, line []byte) verdict {
	var pod corev1.Pod
	wrong, err := kjson.UnmarshalStrict(line, &pod)
	if err == nil && len(wrong) > 0 {
		err = wrong[0]
	}
	if err != nil {
		return verdict{Error: err.Error()}
	}
	level := api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}
	result := policy.AggregateCheckResults(evaluator.EvaluatePod(level, &pod.ObjectMeta, &pod.Spec))
	return verdict{Allowed: result.Allowed, Reason: result.ForbiddenReason(), Detail: result.ForbiddenDetail()}
}

func main() {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 16<<20)
	out := bufio.NewWriter(os.Stdout)
	answers := json.NewEncoder(out)
	for lines.Scan() {
		if err := answers.Encode(judge(evaluator, lines.Bytes())); err != nil {
			os.Exit(1)
		}
		if err := out.Flush(); err != nil {
			os.Exit(1)
		}
	}
	if err := lines.Err(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
