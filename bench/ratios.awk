# ratios.awk: a table of metrics from lines "metric, value, unit, reference", by tabs, given twice:
# beside each metric the value of the one it is compared with, and their ratio, or that it was not
# measured.
BEGIN { FS = OFS = "\t"; print "metric", "value", "unit", "reference", "ratio" }
NR == FNR { value[$1] = $2; next }
NF >= 3 {
	known = (NF >= 4 && ($4 in value) && value[$4] > 0)
	reference = NF >= 4 ? "no " $4 : ""
	if (known)
		reference = value[$4]
	print $1, $2, $3, reference, (known ? sprintf("%.3f", $2 / value[$4]) : "")
}
